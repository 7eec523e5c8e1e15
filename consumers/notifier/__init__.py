"""Tells people of incidents, from the log: Slack, e-mail, PagerDuty."""
