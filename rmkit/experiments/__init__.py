"""The quickstart, sweeps, and where their runs are launched."""
