"""The model service: catalogue, scheduler, and one runner process per loaded model."""
