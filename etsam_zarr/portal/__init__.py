"""Tomograms and masks of the CryoET Data Portal, by what people call them."""
