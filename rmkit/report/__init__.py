"""From run directories to tables, figures and one HTML page. Reads files only: no model, no torch."""
