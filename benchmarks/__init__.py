"""Speed against peers on the same weights, in the same run: ratios, because machines are shared and noisy."""
