"""Quantisation, after training and during it."""
