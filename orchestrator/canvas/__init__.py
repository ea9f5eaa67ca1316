"""The broker's side of the house: all that knows Celery and kombu, except the worker's own app, tasks and pool."""
