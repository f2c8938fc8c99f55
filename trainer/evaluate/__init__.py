"""Metrics of a model over a split, its attacks and its heatmaps; docs/metrics.md defines them.

    python -m trainer.evaluate --checkpoint CHECKPOINT --data SHARDS    # the full report of one model or several

Files in reading order:

    plan            what an evaluation measures, on how many examples
    measure         `evaluate`: both passes over a split
    classify        a model as a function from images to logits
    accuracy        accuracy, loss and calibration
    sums            exact sums over batches and workers
    robustness      attacks: FGSM, PGD and Square
    autoattack      the attacks of another library
    heatmaps        the heatmap, its likeness to the image, smoothness and sparsity
    faithfulness    whether the heatmap shows what the classifier uses
    noise, blur, corruptions    changed images
    subject         models to evaluate: checkpoints, published weights, registered models
    gallery         pictures of heatmaps
    table           the report in the terminal
    run             the command: report.json, galleries and the table
    __main__        the command line, without PyTorch
"""
