"""What is deployed: manifests, images, dashboards, scripts, pages."""
