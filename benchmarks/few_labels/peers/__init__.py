"""Other self-supervised methods on the encoder and the views of CADS, small and plain, to compare with."""
