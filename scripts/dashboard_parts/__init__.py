"""The parts of scripts/make_dashboards.py: how a panel looks, and which panels each dashboard has."""
