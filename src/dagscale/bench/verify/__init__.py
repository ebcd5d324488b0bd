"""``dagscale verify``: predicted rates against those that training finds."""
