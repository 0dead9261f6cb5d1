"""provider_kairos: boxes that run Kairos become a Kubernetes cluster with one shared network token."""

__version__ = "0.1.0"
