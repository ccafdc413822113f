"""The paths and shapes of the first HTTP services, over the agents they stood for and the operations of the catalogue."""
