"""One trial: shards → batch → forward → heatmap → penalty → step → evaluate → report.

Files in reading order:

    config, model_input, normalization    a trial as a value; image size, mean and deviation of its model
    errors, retryable    errors of the user, errors worth another try
    command, plain    flags of dataclasses, settings in YAML
    metrics         names of metrics, defined once
    locations, cache    files by path or URL, local copies of remote shards
    digits          the embedded data set
    shards/         find, read, write, make and verify shards
    preprocess, broken_images    decoding, crops and resizing; how many images may fail
    readers, data   batches by request; loaders of training and evaluation
    models, resnet, timm_names    models by name
    published, weights_file, weight_copies, last_layer, weights    published weights, from file to model
    head            a new last layer, trained alone
    convolution, double_backprop, precision    cheaper second derivatives, float32 where it is needed
    step            loss and training step
    schedule, distributed    the learning rate; what a trial needs of torch.distributed
    calibrate       units of the regularizers' weights
    fit             the training: epochs, evaluation, state
    evaluate/       metrics of a model over a split
    epoch_report, trial_log, system_metrics, checkpoint_io    what a trial reports, writes and saves
    ray_trial       one worker of a trial on Ray Train
    placement, ray_driver, lean_trainer, stop    what drives the workers, without PyTorch
"""
