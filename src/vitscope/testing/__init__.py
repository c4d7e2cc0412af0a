"""Tiny random ViTs of every family and checks, for the tests and for people who add an adapter."""
