"""Problems with known answers: environments, exact policies, and what an estimator should return on them."""
