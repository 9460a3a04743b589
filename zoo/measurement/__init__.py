"""What a model costs: `macs` counts it, `conventions` counts it once more as the sources do."""
