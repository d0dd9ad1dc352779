"""SmolLM2-135M-Instruct: a real model beside atlas. Its checkpoint is made on first use; its probe ships."""
