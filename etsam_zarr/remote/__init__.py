"""Volumes on web servers and in object stores: each stored chunk fetched once, patiently, without showing secrets."""
