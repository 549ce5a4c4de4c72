"""Stores: one adapter a file, none of which knows another."""
