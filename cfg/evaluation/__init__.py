"""Evaluation: features, moments, metrics, the sweep over w and its report."""
