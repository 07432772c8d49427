"""Fusing what arrives at a slice. One interface, one file for each rule.

A rule takes the `Arrivals` of one label at the planes of one gap and returns its score there: (T, h, w) within the
label's box, in pixels of signed distance or log-odds of that slope, positive where the label is. Between labels that
exclude each other the higher score wins.
"""
