"""One trial: shards → batch → forward → heatmap → penalty → step → evaluate → report."""
