"""From files on disk to the arrays that models take: decoding, sampling, transforms, masking."""
