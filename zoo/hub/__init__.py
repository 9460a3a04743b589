"""Repositories: what lies in one, and how weights get in and out."""
