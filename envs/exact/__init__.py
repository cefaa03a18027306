"""Problems with known answers: their environments, their exact policies, and what an estimator should return on them."""
