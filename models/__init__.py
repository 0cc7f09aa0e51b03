"""The small trained model of this repository and its recipe: corpus, training, evaluation."""
