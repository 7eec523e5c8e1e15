"""Workflow services that use the client, and the demo that repairs them."""
