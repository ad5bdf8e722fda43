"""Which of two pictures do you like better? Questions, answers, and the page that asks."""
