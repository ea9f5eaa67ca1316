"""Durable multi-agent workflows on Celery."""

__version__ = "0.1.0"
