"""Inspection of photographs: maps, regions with a promise, repairs, and the page that shows them."""
