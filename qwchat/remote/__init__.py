"""A model that runs elsewhere: replies through a server that speaks the OpenAI protocol."""
