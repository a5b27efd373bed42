from ._attention import attention_biases as attention_biases, attention_maps as attention_maps
