"""What training and evaluation share: questions, engines that answer them, and files that keep every stage."""
