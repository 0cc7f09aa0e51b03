"""The web pages, one module each, and the HTML pieces that they share."""
