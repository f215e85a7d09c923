"""A model behind HTTP, in the protocol of OpenAI's API. Needs starlette and uvicorn, the extra `serve`."""
