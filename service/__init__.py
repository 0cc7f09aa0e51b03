"""Jobs, the store and the queue's sending side, the Hub, cards: everything between a face and the weights."""
