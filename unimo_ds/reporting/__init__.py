"""The tables of UNIMO's paper with this project's figures beside the published ones."""
