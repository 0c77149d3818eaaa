"""What both ends share: connections, and the forms in which models, updates, archives and names travel."""
