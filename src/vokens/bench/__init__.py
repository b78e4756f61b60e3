"""How good is a codec: metrics, the models that judge, other codecs, and the benchmark that joins them."""
