"""Distributed pretraining of one- and few-step image generators."""

__version__ = "0.1.0"
