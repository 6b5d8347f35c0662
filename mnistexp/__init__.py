"""mnistexp: tune an MNIST network with Hydra, Optuna, TensorFlow and MLflow."""

__version__ = "0.1.0"
