"""From a sweep's winner to a champion that is used: `confirm`, the model registry, `predict`."""
