"""Speech over HTTP: OpenAI's speech endpoint, tokens in and out, batches across requests."""
