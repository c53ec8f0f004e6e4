"""Enrolment: how a new server gets the cluster's credentials with a join token (R11)."""
