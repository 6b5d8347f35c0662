"""The command `ui`: MLflow's and Optuna's own dashboards, served lean and to this machine alone."""
