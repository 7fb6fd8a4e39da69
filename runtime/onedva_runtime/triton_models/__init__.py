"""Python models that Triton runs; `triton_repository.py` copies them into a repository as model.py. Their module
`triton_python_backend_utils` exists inside Triton only."""
