"""What tables are made of: scores of texts, likelihoods of a model, intervals, and a judge model by HTTP.

Rates over texts with their intervals are in :mod:`mappers.evaluation`.
"""
