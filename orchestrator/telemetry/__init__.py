"""What the house says of itself: logs and metrics. The engine never imports it; roles hand it what happened."""
