"""The hands: processes that claim steps, call agents and settle what came back."""
