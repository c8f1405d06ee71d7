"""Render a lane plan for the devices that carry it out."""
