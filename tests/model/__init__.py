"""Tests of `qwchat.model`."""
