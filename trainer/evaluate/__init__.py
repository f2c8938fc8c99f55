"""What a network is worth on a split: accuracy, robustness, heatmaps. docs/metrics.md defines the metrics.

plan → evaluation → heatmaps, faithfulness, robustness, corruptions, noise; checkpoints and gallery for
`python -m trainer.evaluate`, which run carries out.
"""
